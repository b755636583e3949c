"""Jobs of students that embed."""
