"""What finished runs show, in numbers."""
