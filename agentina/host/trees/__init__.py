"""Trees of files: repositories, workspaces made of them, what tasks leave there, and archives of what changed."""
