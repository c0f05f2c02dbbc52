# A project of sixty C files: make -j with generated dependencies, archives, shared libraries, an incremental build.
set -eu
mkdir -p src include
for i in $(seq 60); do
    printf '#ifndef H%s\n#define H%s\n#include <stdio.h>\nint f%s(int);\n#endif\n' "$i" "$i" "$i" > "include/f$i.h"
    printf '#include "f%s.h"\n#include "config.h"\nint f%s(int n) { return n + %s * SCALE; }\n' "$i" "$i" "$i" > "src/f$i.c"
done
{ for i in $(seq 60); do echo "#include \"f$i.h\""; done; echo 'int main(void) { int n = 0;'; for i in $(seq 60); do echo "n = f$i(n);"; done; echo 'printf("%d\n", n); return n % 7; }'; } > src/main.c
cat > Makefile <<'END'
OBJECTS := $(patsubst src/%.c,obj/%.o,$(filter-out src/main.c,$(wildcard src/*.c)))
CFLAGS := -O1 -g -fPIC -Iinclude -I. -MMD -MP -ffile-prefix-map=$(CURDIR)=.
all: static shared
static: obj/main.o libf.a
	gcc -o $@ $^
shared: obj/main.o libf.so
	gcc -o $@ obj/main.o -L. -lf -Wl,-rpath,'$$ORIGIN'
libf.a: $(OBJECTS)
	rm -f $@; ar rcsD $@ $^
libf.so: $(OBJECTS)
	gcc -shared -o $@ $^
obj/%.o: src/%.c config.h | obj
	gcc $(CFLAGS) -c -o $@ $<
config.h: Makefile
	printf '#define SCALE 3\n' > $@.tmp && mv $@.tmp $@
obj:
	mkdir -p $@
clean:
	rm -rf obj libf.a libf.so static shared config.h
-include $(OBJECTS:.o=.d)
END
make -s -j4; ./static || echo "status $?"; ./shared || echo "status $?"; make -s -j4 -q && echo 'up to date'; sha256sum libf.a libf.so static shared
touch -d '+1 minute' include/f7.h; make -j4 -n | grep -c 'gcc.*-c'; touch -d '+2 minutes' src/f9.c; make -s -j4 2> /dev/null; ./static || echo "status $?"; nm libf.a | grep -c ' T f'; ar t libf.a | wc -l; strip -o stripped static; ./stripped || true; objcopy --only-keep-debug static static.debug; size libf.so | awk 'NR == 2 { print $1 > 0 }'; gcc -E -Iinclude -I. src/f1.c | grep -c f1; gcc -Iinclude -c src/nowhere.c 2>&1 | head -n 1; echo 'int x' > src/bad.c; gcc -c src/bad.c 2>&1 | head -n 1; rm src/bad.c; gcc -save-temps -Iinclude -I. -c src/f1.c; ls f1.*; gcc -flto -O2 -Iinclude -I. -o lto src/*.c; ./lto || echo "status $?"; echo 'int main(void){return 0;}' | gcc -pipe -x c - -o piped && ./piped; gcc -x c-header include/f1.h -o f1.h.gch && echo precompiled
make -s clean; rm -f f1.h.gch; ls
