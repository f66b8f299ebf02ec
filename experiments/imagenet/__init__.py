"""The classics of ImageNet: published weights on photographs of one's own, and training them."""
