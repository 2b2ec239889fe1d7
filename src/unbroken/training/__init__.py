"""The trainer's side: the loop, what it captures, and how it is restored. The only package that imports torch."""
