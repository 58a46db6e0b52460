//! kimage.
