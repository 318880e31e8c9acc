"""The operating system behind small doors: clock, files, processes, cgroups, pressure, paths, asyncio tasks.

The only package that may use ``subprocess``, ``os.replace``, ``time`` and ``asyncio.create_task`` directly.
"""
