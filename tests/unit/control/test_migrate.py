from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from agentina import errors
from agentina.control.store import migrate

ONE = migrate.Migration(1, "001_pre_one.sql", "CREATE TABLE one (a);\n-- a; comment\nINSERT INTO one VALUES (';');\n")
TWO = migrate.Migration(2, "002_pre_two.sql", "CREATE TABLE two (b);\nALTER TABLE one ADD COLUMN c;\n")
BROKEN = migrate.Migration(2, "002_pre_two.sql", "CREATE TABLE two (b);\nALTER TABLE nowhere ADD COLUMN c;\n")


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    opened = sqlite3.connect(":memory:", isolation_level=None)
    yield opened
    opened.close()


def tables(connection: sqlite3.Connection) -> set[str]:
    return {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_each_migration_is_applied_once_in_order(connection: sqlite3.Connection) -> None:
    assert migrate.migrate(connection, [ONE], now_ms=1) == [ONE.name]
    assert migrate.migrate(connection, [ONE, TWO], now_ms=2) == [TWO.name]
    assert migrate.migrate(connection, [ONE, TWO], now_ms=3) == []
    assert connection.execute("SELECT a FROM one").fetchall() == [(";",)]


def test_a_migration_that_fails_in_the_middle_leaves_nothing_and_is_repeated(connection: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.OperationalError):
        migrate.migrate(connection, [ONE, BROKEN], now_ms=1)
    assert tables(connection) == {"migrations", "one"}
    assert migrate.migrate(connection, [ONE, TWO], now_ms=2) == [TWO.name]


def test_a_newer_database_is_refused(connection: sqlite3.Connection) -> None:
    migrate.migrate(connection, [ONE, TWO], now_ms=1)
    with pytest.raises(errors.AgentinaError, match="version 2"):
        migrate.migrate(connection, [ONE], now_ms=2)


def test_a_database_made_by_other_files_is_refused(connection: sqlite3.Connection) -> None:
    migrate.migrate(connection, [ONE], now_ms=1)
    changed = migrate.Migration(1, ONE.name, ONE.sql + "CREATE TABLE more (x);\n")
    with pytest.raises(errors.AgentinaError, match="001_pre_one"):
        migrate.migrate(connection, [changed], now_ms=2)


def test_packaged_migrations_are_numbered_without_gaps_and_apply(connection: sqlite3.Connection) -> None:
    packaged = migrate.packaged()
    assert [migration.version for migration in packaged] == list(range(1, len(packaged) + 1))
    assert all(migration.name[3:].startswith(("_pre_", "_post_")) for migration in packaged)
    migrate.migrate(connection, packaged, now_ms=1)
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    assert {"jobs", "tasks", "agents", "audit"} <= tables(connection)


def test_classes_of_jobs_are_made_anew_and_stay_what_they_are(connection: sqlite3.Connection) -> None:
    before = [migration for migration in migrate.packaged() if migration.version < 12]
    migrate.migrate(connection, before, now_ms=1)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("INSERT INTO organizations VALUES (1, 'o', 'basic', 1, 1, 'stable', 1.0, 1)")
    connection.execute("INSERT INTO classes VALUES (7, 1, 'coder', '{}', 'codex')")
    connection.execute(
        "INSERT INTO jobs (id, public_id, organization_id, class_id, name, spec, priority, memory_bytes, state,"
        " reason, ready, runnable_ms, created_ms)"
        " VALUES (1, 'job_1', 1, 7, 'old', '{}', 50, 1, 'queued', 'waiting-for-agent', 1, 1, 1)"
    )
    migrate.migrate(connection, migrate.packaged(), now_ms=2)
    assert connection.execute("SELECT * FROM classes").fetchall() == [(7, 1, "coder", "{}", "codex", "")]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        connection.execute("UPDATE jobs SET class_id = 8")
    connection.execute("INSERT INTO classes VALUES (8, 1, 'coder', '{}', 'codex', 'budget')")


def test_the_lines_of_old_timelines_are_counted(connection: sqlite3.Connection) -> None:
    initial, counted = migrate.packaged()[:2]
    migrate.migrate(connection, [initial], now_ms=1)
    for job in (1, 2):
        connection.execute(
            "INSERT INTO jobs (id, public_id, organization_id, class_id, name, spec, priority, memory_bytes, state,"
            " reason, ready, runnable_ms, created_ms)"
            " VALUES (?, ?, 1, 1, 'old', '{}', 50, 1, 'queued', 'waiting-for-agent', 1, 1, 1)",
            (job, f"job_{job}"),
        )
    for number in (1, 2, 3):
        connection.execute("INSERT INTO events (job_id, number, at_ms, text) VALUES (1, ?, 1, 'line')", (number,))
    migrate.migrate(connection, [initial, counted], now_ms=2)
    assert connection.execute("SELECT events FROM jobs ORDER BY id").fetchall() == [(3,), (0,)]
