use crate::Error;

/// Maximal length of a name, in bytes: that of file names in common file systems.
const MAX_LENGTH: usize = 255;

/// Checks the name of a checkpoint or of a file in one: a single path component that is not hidden
/// and is spelled the same in a folder and in a URL.
///
/// # Errors
/// It is no such name.
pub fn check(name: &str) -> Result<(), Error> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > MAX_LENGTH || name.starts_with('.') || !name.bytes().all(known) {
        return Err(Error::Name { name: name.chars().take(MAX_LENGTH).collect() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_of_checkpoints_and_their_files_pass() {
        for name in ["2-dico-00000050", "captioner.safetensors", "a", &"x".repeat(MAX_LENGTH)] {
            check(name).unwrap();
        }
    }

    #[test]
    fn what_leads_elsewhere_does_not() {
        for name in
            ["", ".", "..", ".hidden", "a/b", "/a", "a\\b", "a\0", "a b", "ä", "a%2Fb", &"x".repeat(MAX_LENGTH + 1)]
        {
            assert!(matches!(check(name), Err(Error::Name { .. })), "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn what_passes_is_one_component(name in ".*") {
            if check(&name).is_ok() {
                let parts: Vec<_> = std::path::Path::new(&name).components().collect();
                prop_assert_eq!(parts, [std::path::Component::Normal(name.as_ref())]);
            }
        }
    }
}
