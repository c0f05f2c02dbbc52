# Every kind of redirection that bash has, alone and with others.
set -eu
fails() { if "$@"; then echo "succeeded: $*"; return 1; else echo "status $?"; fi; }

echo one > file; cat < file; echo two >> file; cat file; echo over >| file; cat file
set -C; fails eval 'echo no > file'; echo yes >| file; echo fresh > fresh; set +C; cat file fresh
{ echo out; echo err >&2; } > out 2> err; cat out err
{ echo out; echo err >&2; } > both 2>&1; cat both
{ echo out; echo err >&2; } 2>&1 > only-out | sed 's/^/piped: /'; cat only-out
{ echo out; echo err >&2; } &> both; { echo out; echo err >&2; } &>> both; cat both
{ echo out; echo err >&2; } >& both; cat both
fails eval 'cat < missing'; fails eval 'cat < missing' 2> err; : > empty; cat empty; > truncated; wc -c < truncated
cat <<END
here $((1 + 1)) $(cat file)
END
cat <<'END'
not $expanded
END
cat <<-END
	tabs go
	END
cat <<< "a here string"
cat <(echo process) <(cat file); echo in > >(cat > substituted); wait; until [ -s substituted ]; do sleep 0.01; done; cat substituted
diff <(sort both) <(sort both | uniq) && echo same

# Descriptors by number: opened, duplicated, moved, closed, read and written in turn.
exec 3> three 4>> four 5< both 6<> six
echo to-three >&3; echo to-four >&4; read -r line <&5; echo "read $line"; read -r line <&5; echo "read $line"
echo 0123456789 >&6; exec 6<&-; cat six
exec 6<> six; read -r -n 4 -u 6 start; echo "$start"; echo -n XY >&6; exec 6>&-; cat six
exec 7>&3 3>&-; echo moved >&7; exec 8>&7-; echo moved again >&8; exec 8>&-; cat three
fails eval 'echo closed >&7'; fails eval 'echo closed >&3'
exec {named}> named; echo "by name" >&"$named"; exec {named}>&-; cat named
exec 9< file; cat <&9; cat <&9; exec 9<&-
(exec > sub; echo inside; cat file); cat sub
exec 4>&-; echo four-again 4>> four >&4; cat four

# One description, several processes: the offset is shared.
{ read -r a; (read -r b; echo "child $b"); read -r c; echo "$a $c"; } < <(printf 'l1\nl2\nl3\n')
printf 'l1\nl2\nl3\nl4\n' > lines; { head -n 1 > /dev/null; cat; } < lines | wc -l
{ read -r a; sed -n 1p; read -r c || echo end; echo "$a"; } < lines
{ echo parent; bash -c 'echo child'; echo parent; /bin/echo external; } > shared; cat shared
{ for i in 1 2 3; do bash -c "echo $i" & wait; done; } >> shared; cat shared
i=0; while read -r line; do i=$((i + 1)); echo "$i $line" >> looped; done < lines; cat looped
while read -r -u 3 left && read -r -u 4 right; do echo "$left-$right"; done 3< lines 4< looped
(exec 3> kept; bash -c 'echo from a descendant >&3'; sh -c 'exec 3>&-; echo closed here' ); cat kept
mkfifo fifo; cat fifo > through & echo over the fifo > fifo; wait; cat through
exec 5<> fifo; echo kept in the pipe >&5; read -r line <&5; echo "$line"; exec 5>&-
echo text | tee t1 t2 > t3; cat t1 t2 t3; cat t1 t2 >> t3; wc -l < t3
fails eval 'cat t3 >> t3' 2>&1 | sed 's/.*cat: //'
echo before > gone; exec 3<> gone; rm gone; read -r line <&3; echo "$line"; echo after >&3; ls -l /proc/self/fd/3 | grep -o '(deleted)'; cat /proc/$$/fd/3; exec 3>&-
echo target > target; ln -s target link; echo through-link >> link; cat target; echo new > dangling-target; ln -sf nowhere dangling; echo made > dangling; cat nowhere
echo x > /dev/null; cat < /dev/null; echo via-dev-fd | cat /dev/fd/0; cat /dev/stdin < file; echo to-stdout > /dev/stdout; echo to-stderr 2>&1 > /dev/stderr
fails eval 'echo x > .' ; fails eval 'echo x > file/below'; fails eval 'cat < .'; mkdir dir; fails eval '> dir'; chmod 000 empty; cat empty
umask 077; echo private > private; umask 022; stat -c '%a %n' private file
coproc { read -r line; echo "coproc got $line"; }; echo ask >&"${COPROC[1]}"; read -r answer <&"${COPROC[0]}"; echo "$answer"; wait
mapfile -t array < lines; echo "${#array[@]} ${array[3]}"; contents=$(< lines); echo "${#contents}"
. <(echo 'echo sourced'); echo 'echo sourced file' > script; . ./script; chmod +x script; fails ./missing; ./script
sed -i 's/l/L/' lines; cat lines; ulimit -n 64; for i in $(seq 200); do read -r first < lines; done; echo "$first"
