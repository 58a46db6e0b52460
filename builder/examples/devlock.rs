//! dev
use kimage_builder::{archive::suites, definition, lock, progress::Progress, store::Store};
fn main() -> anyhow::Result<()> {
    let image = std::env::args().nth(1).unwrap();
    let definition = definition::load_image(std::path::Path::new("."), &image)?;
    let store = Store::open(&Store::default_root()?)?;
    let progress = Progress::stderr(kimage_builder::progress::Verbosity::Normal);
    let snapshot = suites::fetch(&definition.image, &[], &store, jiff::Timestamp::now(), &progress)?;
    let old = lock::load(&definition.image)?;
    let new = lock::resolve(
        &definition.image,
        &definition.roles,
        &definition.components,
        definition.toolchains.as_ref(),
        &snapshot,
        &lock::Pins::Newest,
    )?;
    if let Some(old) = old {
        for c in lock::changes::between(&old, &new) {
            println!("{c}");
        }
    }
    println!("{:?}", lock::write(&definition.image, &new)?);
    Ok(())
}
