"""The node process: owns the command's processes, hears notices, claims attempts, decides how the command ended."""
