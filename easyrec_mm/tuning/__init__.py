"""The search for settings: trainings with other settings, of which the evaluations decide."""
