"""What trainer and agent share: the messages on their socket and the progress page."""
