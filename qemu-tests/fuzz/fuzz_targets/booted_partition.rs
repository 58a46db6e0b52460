#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    kimage_fuzz::run("booted_partition", data);
});
