# tar with everything that a file can have: extended attributes, ACLs, holes, hard links, special files, times.
set -eu
mkdir -p t/a/b t/acl t/many
for i in $(seq 200); do echo "file $i" > "t/many/f$i"; done
echo one > t/a/one; ln t/a/one t/a/b/two; ln -s ../a/one t/a/link; ln -s nowhere t/dangling; mkfifo t/fifo; head -c 300000 /dev/zero | tr '\0' x > t/big; : > t/empty
truncate -s 3M t/holes; printf head | dd of=t/holes conv=notrunc status=none; printf middle | dd of=t/holes bs=1 seek=1500000 conv=notrunc status=none; truncate -s 2M t/only-hole
setfattr -n user.colour -v blue t/a/one; setfattr -n user.shape -v round t/acl; setfattr -n user.bytes -v 0x00ff0a t/big; setfattr -n user.empty t/empty
setfacl -m u:12345:rw,g:54321:r,m::rw t/a/one; setfacl -d -m u:12345:rwx,o::- t/acl; echo inherits > t/acl/made; mkdir t/acl/dir; chmod 6755 t/big; chmod 1777 t/many
n=t/$(printf 'd%.0s' {1..100}); mkdir -p "$n/$n"; echo deep > "$n/$n/$(printf 'f%.0s' {1..200})"
find t -depth -exec touch -h -d '2020-02-02 02:02:02.123456789 UTC' {} +
all="--xattrs --xattrs-include=* --acls --sparse --numeric-owner --sort=name"
tar $all --format=posix --pax-option=delete=atime,delete=ctime,exthdr.name=%d/x/%f -cf all.tar t
tar ${all/--sparse/} --format=posix --pax-option=delete=atime,delete=ctime,exthdr.name=%d/x/%f -cf - t | sha256sum; tar tvf all.tar --full-time | awk '{print $1, $2, $3, $4, $5, $6}' | sort | md5sum; tar tf all.tar | wc -l
mkdir out; tar $all -xpf all.tar -C out
rm t/fifo out/t/fifo; diff -r --no-dereference t out/t; mkfifo t/fifo out/t/fifo; find t/fifo out/t/fifo t out/t -maxdepth 0 -exec touch -d '2020-02-02 02:02:02.123456789 UTC' {} +; tar $all -df all.tar && echo 'nothing differs'
(cd out; find . -depth -printf '%p %y %m %n %s %Tt %l\n' | sort | md5sum; getfattr -dR -m - -h . | md5sum; getfacl -R -n . | md5sum; stat -c '%h' t/a/one; [ t/a/one -ef t/a/b/two ]; stat -c %Y t/big)
[ "$(stat -c %b out/t/only-hole)" -lt 100 ] && [ "$(stat -c %b out/t/holes)" -lt 1000 ] && echo 'holes stay holes'
getfattr -d -m - out/t/a/one out/t/big out/t/empty out/t/acl; getfacl -n out/t/a/one out/t/acl out/t/acl/made out/t/acl/dir

# over what is there, and the other ways
echo changed > out/t/a/one; tar $all -df all.tar -C out 2>&1 | sort || true; tar --overwrite -xf all.tar -C out; tar --keep-old-files -xf all.tar -C out t/a/one 2>&1 | tail -n 1 || true; tar --unlink-first -xf all.tar -C out t/big t/a/link; tar --skip-old-files -xf all.tar -C out; echo old > out/t/empty; tar --keep-newer-files -xf all.tar -C out 2> /dev/null; cat out/t/empty; tar --recursive-unlink -xf all.tar -C out t/a; diff -r --no-dereference t/a out/t/a
tar --format=gnu --sort=name -cf some.tar t; echo added > added; tar -rf some.tar added; tar --delete -f some.tar t/many; tar -tf some.tar | tail -n 2; echo newer > added; touch -d '2031-01-01' added; tar -uf some.tar added; tar -tf some.tar | grep -c added; tar -Af some.tar all.tar; tar -tf some.tar -i | wc -l
tar -czf all.tgz t; tar -xzOf all.tgz t/a/one; tar -xzf all.tgz --strip-components=2 -C out t/a/b; cat out/b/two; tar -cf - t/many | tar -xf - -C out --transform 's/many/renamed/'; ls out/t | head -n 5; tar -c --exclude='f1*' t/many | tar -t | wc -l; tar -cf vol.tar -C t/a . -C ../many f1; tar -tf vol.tar | sort
mkdir inc; echo 1 > inc/1; tar -cg snapshot -f 0.tar inc; echo 2 > inc/2; rm inc/1; tar -cg snapshot -f 1.tar inc; rm -r inc; tar -xg /dev/null -f 0.tar; tar -xg /dev/null -f 1.tar; ls inc
tar --remove-files -cf moved.tar inc out/t/renamed; [ ! -e inc ]; tar -tf moved.tar | wc -l; tar -tf nowhere.tar 2>&1 | head -n 1
# Archives of files with holes name the process that made them.
rm -f all.tar 0.tar 1.tar all.tgz moved.tar some.tar vol.tar snapshot
