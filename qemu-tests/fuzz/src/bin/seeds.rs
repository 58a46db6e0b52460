//! Writes the good inputs that the fuzzers start from.

fn main() -> std::io::Result<()> {
    kimage_fuzz::write_seeds(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus"))
}
