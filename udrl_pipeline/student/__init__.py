"""The student: a small causal language model that is trained on commands and what they achieved."""
