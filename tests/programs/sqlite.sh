# sqlite3 in every journal mode.
set -eu
sql() { sqlite3 -cmd '.timeout 60000' "$@"; }
for mode in delete truncate persist memory wal; do
    sql "$mode.db" "PRAGMA journal_mode = $mode; CREATE TABLE t (id INTEGER PRIMARY KEY, who TEXT, n INTEGER); CREATE INDEX i ON t (who, n);"
    sql "$mode.db" "BEGIN; WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 2000) INSERT INTO t (who, n) SELECT 'first', x FROM c; COMMIT; SELECT count(*), sum(n) FROM t;"
    sql "$mode.db" "BEGIN; DELETE FROM t WHERE n % 3 = 0; UPDATE t SET n = n + 1 WHERE n % 2; ROLLBACK; BEGIN; DELETE FROM t WHERE n % 5 = 0; SAVEPOINT s; DELETE FROM t; ROLLBACK TO s; COMMIT; SELECT count(*), sum(n) FROM t;"
    sql "$mode.db" "PRAGMA integrity_check; VACUUM; REINDEX; ANALYZE; PRAGMA integrity_check; PRAGMA page_count;"
    sql "$mode.db" ".backup $mode.backup" "ATTACH '$mode.backup' AS b; SELECT count(*) FROM b.t; SELECT count(*) FROM (SELECT * FROM t EXCEPT SELECT * FROM b.t);"
done
sql wal.db 'PRAGMA wal_checkpoint(TRUNCATE);' | cut -d '|' -f 1; sql imported.db '.mode csv' '.import /dev/stdin t' 'SELECT * FROM t;' <<< $'a,b\n1,2\n3,4'
for db in *.db *.backup; do sql "$db" 'PRAGMA integrity_check;'; done; ls; rm *.db *.backup
