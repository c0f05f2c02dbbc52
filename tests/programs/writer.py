"""Writes to the database `db` of the current directory, and names each of its transactions once it has been committed, until its
standard input ends or the database is gone. Each transaction reads the table `total` and adds one to it."""
import select
import sqlite3
import sys
import time

who, journal = sys.argv[1:]


def retried(*statement):
    """In WAL mode, SQLite does not wait for everything that another one has locked."""
    while True:
        try:
            return database.execute(*statement)
        except sqlite3.OperationalError as error:
            if 'locked' not in str(error) or told_to_stop():
                raise


def told_to_stop():
    return select.select([sys.stdin], [], [], 0)[0]


number = 0
try:
    database = sqlite3.connect('db', timeout=60, isolation_level=None)
    assert retried(f'pragma journal_mode={journal}').fetchone()[0] == journal
    retried('begin immediate')
    database.execute('create table if not exists written(who, number, text)')
    database.execute('create table if not exists total as select 0 as number')
    database.execute('commit')
    while not told_to_stop():
        retried('begin immediate')
        begun = time.monotonic()
        total = database.execute('select number from total').fetchone()[0]
        database.execute('insert into written values(?, ?, ?)', (who, number, 'x' * (number * 37 % 3000)))
        database.execute('update total set number = ?', (total + 1,))
        database.execute('commit')
        number += 1
        print(number, flush=True)
        # SQLite lets nobody wait in line: without a pause as long as this took, the other one may never find it unlocked.
        time.sleep(time.monotonic() - begun)
except sqlite3.Error as error:
    print(type(error).__name__, error, file=sys.stderr)
