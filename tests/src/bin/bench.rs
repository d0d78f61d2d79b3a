//! `portcullis-bench`, run by `cargo xtask bench`.

fn main() -> anyhow::Result<()> {
    portcullis_tests::bench::main()
}
