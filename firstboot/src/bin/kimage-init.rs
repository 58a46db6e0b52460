//! kimage.
fn main() {}
