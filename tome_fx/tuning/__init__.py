"""Finding the schedule that changes a model's answers least for a measured speed."""
