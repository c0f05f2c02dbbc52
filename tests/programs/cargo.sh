# cargo: crates vendored from its cache, a debug and a release build, tests, an incremental build. No network.
set -eu
cargo new -q --vcs none --name finesse-cargo project; cd project
printf 'serde = { version = "1", features = ["derive"] }\nserde_json = "1"\nmemchr = "2"\n' >> Cargo.toml
cat > src/main.rs <<'END'
#[derive(serde::Serialize, serde::Deserialize, Debug, PartialEq)]
struct Item { name: String, size: u64 }
fn main() {
    let text = serde_json::to_string(&vec![Item { name: "a".into(), size: 7 }]).unwrap();
    println!("{text} {:?}", memchr::memchr(b'7', text.as_bytes()));
    std::fs::write("out", &text).unwrap();
    std::fs::create_dir_all("x/y").unwrap();
    std::fs::rename("out", "x/y/out").unwrap();
    for entry in std::fs::read_dir("x/y").unwrap() { println!("{:?}", entry.unwrap().metadata().unwrap().len()); }
    std::fs::copy("x/y/out", "x/copy").unwrap();
    println!("{}", std::fs::read_to_string("x/copy").unwrap());
    std::fs::remove_dir_all("x").unwrap();
}
#[test]
fn round_trip() {
    let item = Item { name: "b".into(), size: 1 };
    assert_eq!(serde_json::from_str::<Item>(&serde_json::to_string(&item).unwrap()).unwrap(), item);
}
END
mkdir .cargo; cp "$FINESSE_WORKSPACE/Cargo.lock" .; cargo vendor -q --offline > .cargo/config.toml; ls vendor; find vendor -type f | wc -l; cat .cargo/config.toml
cargo build -q --offline; ./target/debug/finesse-cargo; cargo run -q --offline --release; cargo test -q --offline 2>&1 | grep -c 'test result: ok'
echo '// changed' >> src/main.rs; cargo build --offline 2>&1 | grep -c Compiling; cargo build --offline 2>&1 | grep -c Compiling || true; cargo check -q --offline; cargo tree -q --offline --prefix none | sed 's/ (.*//' | sort -u; cargo package -q --offline --no-verify --allow-dirty 2> /dev/null; tar tzf target/package/*.crate; cargo clean -q; ls -A
