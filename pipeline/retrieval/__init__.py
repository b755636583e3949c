"""Retrieval: the measures of finished students that embed."""
