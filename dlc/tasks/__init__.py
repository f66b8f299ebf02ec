"""What experiments of one kind share: images, text, pairs of sentences, and races against the clock."""

import dlc.run  # noqa: F401, which checks that what runs need is installed
