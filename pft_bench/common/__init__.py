"""What every part may use: texts and files as people see them, limits of the machine, schedules, stages."""
