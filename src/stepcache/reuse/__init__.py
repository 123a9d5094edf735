"""What is reused when: schedules, cuts, predictions. Plain Python, no torch."""
