"""Databases of the service: SQLite, or PostgreSQL for several servers.

Both speak the same statements, written with `?` for values. A transaction
yields a function (statement, values) -> rows, each a dict.
"""

import contextlib
import os
import pathlib
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from typing import Any

Execute = Callable[..., list[dict[str, Any]]]


class SQLite:
  """A SQLite file in WAL mode, with a connection for each thread.

  Commits reach the disk (synchronous=full). The file must lie on a local disk.

  Args:
    path: the file, created if it is absent.
  """

  serial = 'integer primary key autoincrement'
  skip_locked = ''

  def __init__(self, path: str | os.PathLike):
    self._path = pathlib.Path(path)
    self._local = threading.local()

  @contextlib.contextmanager
  def transaction(self, *, durable: bool = True) -> Iterator[Execute]:
    """Runs statements that happen together or not at all.

    Args:
      durable: whether they are on the disk before it returns; else a loss of
        power may undo them, as the death of a process does not.
    """
    connection = self._connection()
    if not durable:
      connection.execute('pragma synchronous=normal')
    try:
      connection.execute('begin immediate')
      try:
        yield self._execute
        connection.execute('commit')
      except BaseException:
        connection.execute('rollback')
        raise
    finally:
      connection.execute('pragma synchronous=full')

  @contextlib.contextmanager
  def reading(self) -> Iterator[Execute]:
    """Runs statements that only read."""
    yield self._execute

  def close(self) -> None:
    """Closes this thread's connection."""
    connection = getattr(self._local, 'connection', None)
    if connection is not None:
      connection.close()
      del self._local.connection

  def _execute(self, statement: str, values=()) -> list[dict]:
    cursor = self._connection().execute(statement, values)
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

  def _connection(self) -> sqlite3.Connection:
    connection = getattr(self._local, 'connection', None)
    if connection is None:
      connection = sqlite3.connect(self._path, timeout=30, isolation_level=None)
      connection.execute('pragma journal_mode=wal')
      connection.execute('pragma synchronous=full')
      self._local.connection = connection
    return connection


class Postgres:
  """A PostgreSQL database, with a connection for each thread.

  Args:
    url: postgresql://USER@HOST/NAME.
  """

  serial = 'bigserial primary key'
  skip_locked = ' for update skip locked'

  def __init__(self, url: str):
    self._url = url
    self._local = threading.local()

  @contextlib.contextmanager
  def transaction(self, *, durable: bool = True) -> Iterator[Execute]:
    """Runs statements that happen together or not at all.

    Args:
      durable: whether they are on the disk before it returns.
    """
    import psycopg

    connection = self._connection()
    try:
      with connection.transaction():
        if not durable:
          connection.execute('set local synchronous_commit = off')
        yield self._execute
    except psycopg.OperationalError:
      self.close()  # the next transaction connects again
      raise

  reading = transaction

  def close(self) -> None:
    """Closes this thread's connection."""
    connection = getattr(self._local, 'connection', None)
    if connection is not None:
      del self._local.connection
      connection.close()

  def _execute(self, statement: str, values=()) -> list[dict]:
    cursor = self._connection().execute(statement.replace('?', '%s'), values)
    return cursor.fetchall() if cursor.description else []

  def _connection(self):
    import psycopg
    import psycopg.rows

    connection = getattr(self._local, 'connection', None)
    if connection is None or connection.closed:
      connection = psycopg.connect(
        self._url, autocommit=True, row_factory=psycopg.rows.dict_row
      )
      self._local.connection = connection
    return connection


Database = SQLite | Postgres
_ID = re.compile(r'[A-Za-z0-9_-]{1,100}', re.ASCII)


def is_id(value: str) -> bool:
  """Whether a client's text can be an id: a database refuses some characters
  with an error."""
  return bool(_ID.fullmatch(value))


def create_tables(database: Database, schema: str) -> None:
  """Creates the tables of a schema that are absent.

  Args:
    database: the database.
    schema: statements with semicolons between them; SERIAL stands for the type
      of a key that counts.
  """
  schema = re.sub(r'\bSERIAL\b', database.serial, schema)
  with database.transaction() as execute:
    if isinstance(database, Postgres):
      # Two servers that start together would create the same table twice.
      execute('select pg_advisory_xact_lock(7415)')
    for statement in filter(str.strip, schema.split(';')):
      execute(statement)


def connect(url: str, folder: pathlib.Path) -> Database:
  """The database of a URL, or a SQLite file in the folder if it is empty."""
  if url:
    return Postgres(url)
  folder.mkdir(parents=True, exist_ok=True)
  return SQLite(folder / 'jobs.sqlite')
