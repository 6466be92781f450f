"""How good the students are: measured on held-out intents, beside their teacher, with intervals."""
