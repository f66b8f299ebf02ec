"""Attention, from alignment to GPT: texts, translations, and images as words."""
