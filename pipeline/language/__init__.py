"""Runs of students that are language models: their data, their training, their evaluation."""
