"""What runs inside a task, beside its command: it asks the daemon, over the task's own socket.

Standard library only, without the rest of agentina: it is run by whatever Python the task's host or slot has, and by
several tasks at once.
"""
