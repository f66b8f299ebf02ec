"""What experiments of one kind share: images, text, pairs of sentences, and races against the clock."""
