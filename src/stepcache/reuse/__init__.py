"""What is reused and when: schedules, cuts and predictors. Plain Python, without torch."""
