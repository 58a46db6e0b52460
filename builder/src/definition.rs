//! What the user wrote: an image (`images/<name>/image.toml`), a role (`roles/<name>/role.toml`) and the components
//! that the role names. Unknown keys, wrong types and bad names are refused with file and line.

pub mod component;
pub mod image;
pub mod role;
pub mod toolchain;

pub use component::Component;
pub use image::Image;
pub use role::Role;
pub use toolchain::Toolchains;

/// One image and one role with all components, checked: names are valid, the role exists, every component that the
/// role names exists.
#[derive(Debug, Clone)]
pub struct Definition {
    /// The base image.
    pub image: Image,
    /// The role.
    pub role: Role,
    /// The components that the role (and the image) name, sorted by name.
    pub components: Vec<Component>,
}
