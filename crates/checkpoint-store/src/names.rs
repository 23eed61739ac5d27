use crate::Error;

/// Maximal length of a name, in bytes: that of file names in common file systems.
const MAX_NAME_BYTES: usize = 255;

/// Checks the name of a checkpoint or of a file in one: a single path component that is not hidden
/// and is spelled the same in a folder and in a URL.
///
/// # Errors
/// The name is invalid.
pub fn check(name: &str) -> Result<(), Error> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.starts_with('.') || !name.bytes().all(is_allowed) {
        return Err(Error::Name { name: name.chars().take(MAX_NAME_BYTES).collect() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_of_checkpoints_and_files_are_valid() {
        for name in ["2-dico-00000050", "captioner.safetensors", "a", &"x".repeat(MAX_NAME_BYTES)] {
            check(name).unwrap();
        }
    }

    #[test]
    fn names_with_other_characters_or_that_lead_out_of_a_folder_are_invalid() {
        for name in
            ["", ".", "..", ".hidden", "a/b", "/a", "a\\b", "a\0", "a b", "ä", "a%2Fb", &"x".repeat(MAX_NAME_BYTES + 1)]
        {
            assert!(matches!(check(name), Err(Error::Name { .. })), "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn a_valid_name_is_one_path_component(name in ".*") {
            if check(&name).is_ok() {
                let components: Vec<_> = std::path::Path::new(&name).components().collect();
                prop_assert_eq!(components, [std::path::Component::Normal(name.as_ref())]);
            }
        }
    }
}
