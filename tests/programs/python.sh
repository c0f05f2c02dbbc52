# What programs in Python do with files: os, shutil, mmap, tempfile, multiprocessing, sqlite3, zipfile, and modules of their own.
set -eu
mkdir -p tree/a/b tree/many; for i in $(seq 50); do echo "line $i" > tree/many/f$i; done; echo one > tree/a/one; ln -s one tree/a/link; setfattr -n user.colour -v blue tree/a/one
cat > helper.py <<'END'
import os
def size(path): return path, os.path.getsize(path)
def bump(path, times):
    import fcntl
    for _ in range(times):
        with open(path, "r+") as f:
            fcntl.lockf(f, fcntl.LOCK_EX); n = int(f.read() or 0); f.seek(0); f.write(str(n + 1)); f.flush(); fcntl.lockf(f, fcntl.LOCK_UN)
END
env -u PYTHONDONTWRITEBYTECODE /usr/bin/python3 -c 'import helper; print(helper.size("tree/a/one"))'; ls __pycache__; /usr/bin/python3 -m compileall -q . ; rm -r __pycache__
cat > main.py <<'END'
import array, asyncio, bz2, concurrent.futures, csv, dbm.dumb, filecmp, fileinput, glob, gzip, hashlib, io, json, linecache, logging.handlers, lzma, mmap, multiprocessing, os, pathlib, pickle, select, shelve, shutil, signal, socket, sqlite3, stat, struct, subprocess, sys, tarfile, tempfile, threading, zipfile
import helper

def main():
    # os
    fd = os.open("os", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
    print(os.writev(fd, [b"hello ", b"world"]), os.preadv(fd, [bytearray(3), bytearray(3)], 2), os.pwritev(fd, [b"W"], 6), os.lseek(fd, 0, os.SEEK_SET), os.read(fd, 99))
    os.posix_fallocate(fd, 0, 10000); os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED); os.fsync(fd); os.fdatasync(fd); os.ftruncate(fd, 20000); print(os.fstat(fd).st_size, oct(os.fstat(fd).st_mode))
    os.setxattr(fd, "user.a", b"1"); os.setxattr("os", "user.b", b"2"); print(sorted(os.listxattr("os")), os.getxattr(fd, "user.b")); os.removexattr("os", "user.a"); print(os.listxattr(fd))
    print(os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 0, os.SEEK_END)); os.lockf(fd, os.F_LOCK, 0); os.lockf(fd, os.F_ULOCK, 0); os.fchmod(fd, 0o600); os.utime(fd, ns=(1, 2)); print(os.stat("os").st_mtime_ns)
    out = os.open("copied", os.O_RDWR | os.O_CREAT); print(os.sendfile(out, fd, 0, 5000), os.copy_file_range(fd, out, 100, 0, 5000), os.fstat(out).st_size); r, w = os.pipe(); print(os.splice(out, w, 1000, offset_src=0), len(os.read(r, 5000)))
    dup = os.dup(fd); os.lseek(dup, 7, 0); print(os.lseek(fd, 0, 1), os.get_inheritable(dup)); os.set_inheritable(dup, True); print(subprocess.run(["cat", f"/proc/self/fd/{dup}"], pass_fds=[dup], capture_output=True).stdout[:4]); os.close(dup); os.close(out); os.close(fd)
    for root, dirs, files, dfd in os.fwalk("tree"):
        dirs.sort(); print(root, dirs, len(files), sum(os.stat(name, dir_fd=dfd).st_size for name in files))
    with os.scandir("tree/a") as entries: print(sorted((e.name, e.is_symlink(), e.is_dir(), e.stat().st_size if e.is_file() else 0) for e in entries))
    pid = os.fork()
    if pid == 0: os.write(1, b""); open("by-child", "w").write("child"); os._exit(5)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), open("by-child").read()); pid = os.posix_spawn("/bin/sh", ["sh", "-c", "cat; echo spawned >&3"], os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 0, "tree/a/one", os.O_RDONLY, 0), (os.POSIX_SPAWN_OPEN, 1, "spawn-out", os.O_WRONLY | os.O_CREAT, 0o644), (os.POSIX_SPAWN_OPEN, 3, "spawn-3", os.O_WRONLY | os.O_CREAT, 0o644)])
    os.waitpid(pid, 0); print(open("spawn-out").read(), open("spawn-3").read(), os.popen("cat spawn-3").read(), os.system("test -s spawn-3"))
    memfd = os.memfd_create("m"); os.write(memfd, b"mem"); print(os.path.getsize(f"/proc/self/fd/{memfd}")); os.close(memfd); print(os.path.samefile("tree/a/one", "tree/a/link"), os.path.realpath("tree/a/link").endswith("tree/a/one"), os.access("tree", os.W_OK), os.statvfs(".").f_namemax)
    try: os.link("tree", "hard")
    except PermissionError as e: print(e.errno)

    # shutil, pathlib, glob, tempfile
    shutil.copytree("tree", "copy", symlinks=True); print(filecmp.dircmp("tree", "copy").left_only, os.getxattr("copy/a/one", "user.colour")); shutil.make_archive("archive", "zip", "copy"); shutil.unpack_archive("archive.zip", "unpacked"); print(len(list(pathlib.Path("unpacked").rglob("*")))); shutil.rmtree("unpacked"); shutil.move("copy", "moved"); print(shutil.disk_usage(".").total > 0, shutil.which("sh") is not None)
    p = pathlib.Path("moved/p"); p.mkdir(parents=True); (p / "x").write_bytes(b"x" * 100000); (p / "y").symlink_to("x"); (p / "h").hardlink_to(p / "x"); print((p / "y").stat().st_nlink, (p / "y").resolve().name, sorted(q.name for q in p.iterdir()), (p / "x").rename(p / "z").name, sorted(glob.glob("tree/**/f1*", recursive=True)))
    with tempfile.TemporaryDirectory(dir=".") as t:
        with tempfile.NamedTemporaryFile("w+", dir=t) as f, tempfile.TemporaryFile(dir=t) as g, tempfile.SpooledTemporaryFile(max_size=10, dir=t) as s:
            f.write("named"); f.flush(); g.write(b"unnamed" * 1000); g.seek(7); s.write(b"spooled" * 10); s.seek(0); print(open(f.name).read(), g.read(7), s.read(7), len(os.listdir(t)))
        fd, name = tempfile.mkstemp(dir=t); os.close(fd); print(oct(os.stat(name).st_mode), oct(os.stat(t).st_mode))

    # mmap
    with open("mapped", "w+b") as f:
        f.truncate(1 << 20); m = mmap.mmap(f.fileno(), 0); m[4090:4100] = b"0123456789"; m.flush(); f.seek(4090); print(f.read(10)); f.seek(4090); f.write(b"abc"); f.flush(); print(m[4090:4096]); m.resize(2 << 20); print(len(m), os.path.getsize("mapped")); m.close()
        with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY) as c, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as r: c[0] = 65; print(r[0], c.find(b"abc"))
    # files of all layers
    with open("text", "w", encoding="utf-16") as f: f.writelines(f"Zeile {i} ä\n" for i in range(1000))
    with open("text", encoding="utf-16") as f: f.readline(); here = f.tell(); f.read(500); f.seek(here); print(f.readline().strip(), sum(1 for _ in f))
    with open("buffered", "w+b", buffering=100) as f: [f.write(bytes([i % 256]) * 33) for i in range(1000)]; f.seek(-10, 2); print(f.read()); f.seek(500); f.truncate(); f.seek(0, 2); print(f.tell())
    with open("raw", "xb", buffering=0) as f: f.write(b"raw"); os.rename("raw", "raw2"); f.write(b"more")
    with io.open("raw2", "ab+") as f: f.write(b"end"); f.seek(0); print(f.readall() if hasattr(f, "readall") else f.read())
    for module, name in ((gzip, "gz"), (bz2, "bz2"), (lzma, "xz")):
        with module.open(f"z.{name}", "wb") as f: f.write(b"compress" * 10000)
        with module.open(f"z.{name}") as f: f.seek(79992); print(f.read())
    with zipfile.ZipFile("z.zip", "w", zipfile.ZIP_DEFLATED) as z: z.write("tree/a/one", "one"); z.writestr(zipfile.ZipInfo("s", (2020, 2, 2, 2, 2, 2)), "string")
    with zipfile.ZipFile("z.zip", "a") as z: z.writestr("t", "later"); print(z.namelist(), z.read("one"), z.testzip()); z.extractall("zipped")
    with tarfile.open("t.tar.gz", "w:gz") as t: t.add("tree")
    with tarfile.open("t.tar.gz") as t: print(len(t.getnames())); t.extractall("untarred")
    with shelve.open("shelf", flag="n", writeback=True) as s: s["k"] = [1, 2]; s["k"].append(3)
    with shelve.open("shelf") as s: print(s["k"])
    pickle.dump(list(range(1000)), open("pickle", "wb")); json.dump({"a": [1]}, open("json", "w")); csv.writer(open("csv", "w", newline="")).writerows([[1, "a,b"], [2, 'q"']]); print(sum(pickle.load(open("pickle", "rb"))), json.load(open("json")), list(csv.reader(open("csv", newline=""))))
    for line in fileinput.input(["tree/a/one"], inplace=True): print(line.upper(), end="")
    print(open("tree/a/one").read(), linecache.getline("tree/many/f7", 1), hashlib.file_digest(open("tree/many/f8", "rb"), "sha256").hexdigest()[:8])
    handler = logging.handlers.RotatingFileHandler("log", maxBytes=200, backupCount=3); log = logging.getLogger("x"); log.addHandler(handler); log.propagate = False; [log.error("message %d", i) for i in range(60)]; handler.close(); print(sorted(glob.glob("log*")), os.path.getsize("log"))

    # processes and threads
    open("counter", "w").write("0"); files = sorted(glob.glob("tree/many/*"))
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        with context.Pool(3) as pool: print(method, sum(size for _, size in pool.imap_unordered(helper.size, files)))
        workers = [context.Process(target=helper.bump, args=("counter", 50)) for _ in range(3)]; [w.start() for w in workers]; [w.join() for w in workers]; print([w.exitcode for w in workers], open("counter").read())
    with concurrent.futures.ThreadPoolExecutor(8) as pool: print(sum(pool.map(lambda n: [open(f"th{n}", "w").write("x" * n), os.rename(f"th{n}", f"ht{n}"), os.path.getsize(f"ht{n}"), os.unlink(f"ht{n}")][2], range(200))))
    async def shell(n): p = await asyncio.create_subprocess_shell(f"cat tree/many/f{n}", stdout=subprocess.PIPE); return (await p.communicate())[0]
    async def shells(): return await asyncio.gather(*(shell(n) for n in range(1, 9)))
    print(asyncio.run(shells()))
    with open("append", "a") as f: children = [subprocess.Popen(["sh", "-c", "for i in 1 2 3 4 5; do echo line; done"], stdout=f) for _ in range(4)]; [c.wait() for c in children]
    print(open("append").read().count("line\n")); left, right = socket.socketpair(); fd = os.open("tree/a/one", os.O_RDONLY); socket.send_fds(left, [b"x"], [fd]); os.close(fd); _, fds, _, _ = socket.recv_fds(right, 1, 1); print(os.read(fds[0], 10))
    server = socket.socket(socket.AF_UNIX); server.bind("socket"); server.listen(); client = socket.socket(socket.AF_UNIX); client.connect("socket"); server.accept()[0].send(b"over a socket in the directory"); print(client.recv(99), stat.S_ISSOCK(os.stat("socket").st_mode)); os.mkfifo("fifo"); t = threading.Thread(target=lambda: open("fifo", "w").write("through the fifo")); t.start(); print(open("fifo").read()); t.join()

    # databases
    for mode in ("delete", "wal"):
        db = sqlite3.connect(f"{mode}.db"); db.execute(f"pragma journal_mode = {mode}"); db.execute("create table t (a, b)")
        with db: db.executemany("insert into t values (?, ?)", ((i, "x" * i) for i in range(500)))
        try:
            with db: db.execute("delete from t"); raise KeyError
        except KeyError: pass
        other = sqlite3.connect(f"{mode}.db"); print(other.execute("select count(*), sum(length(b)) from t").fetchone(), db.execute("pragma integrity_check").fetchone()); other.close(); db.close()
    old = os.getcwd(); os.chdir("tree/a"); print(os.listdir(".") == os.listdir(old + "/tree/a"), os.getcwd() == old + "/tree/a"); d = os.open("..", os.O_RDONLY); os.fchdir(d); print(sorted(os.listdir(d)), sorted(os.listdir("."))); os.chdir(old); signal.alarm(0)

if __name__ == "__main__": main()
END
/usr/bin/python3 main.py
# Archives hold the time of day, databases what memory held.
rm -r archive.zip z.zip z.gz t.tar.gz shelf* delete.db wal.db*
