//! `images/components/<name>/component.toml`. (Skeleton: the owner of `components` fills it in.)

/// One component.
#[derive(Debug, Clone)]
pub struct Component {
    /// The folder's name.
    pub name: String,
}
