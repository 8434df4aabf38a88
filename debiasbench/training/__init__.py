"""What a method trains with: the task, its stages and batches."""
