"""Ways to write a teacher's answers to tokens, what they are measured on, and how."""
