//! A multimap from ids to ids.

/// A multimap with keys from 0 up to a fixed number, as compressed sparse rows.
#[derive(Debug, Default)]
pub(super) struct IdMultimap {
    /// The start of each key's values in `values`, and the end of the last.
    starts: Vec<usize>,
    values: Vec<u32>,
}

impl IdMultimap {
    /// Builds the map from pairs of key and value. Keys must be below `key_count`. The values of
    /// a key keep the order of the pairs.
    pub fn from_pairs(pairs: &[(u32, u32)], key_count: usize) -> Self {
        let mut starts = vec![0; key_count + 1];
        for &(key, _) in pairs {
            starts[key as usize + 1] += 1;
        }
        for key in 0..key_count {
            starts[key + 1] += starts[key];
        }
        // The end of the values of each key that are already inserted.
        let mut ends = starts.clone();
        let mut values = vec![0; pairs.len()];
        for &(key, value) in pairs {
            let end = &mut ends[key as usize];
            values[*end] = value;
            *end += 1;
        }
        Self { starts, values }
    }

    /// The values of `key`; empty if it has none.
    pub fn get(&self, key: u32) -> &[u32] {
        let key = key as usize;
        match self.starts.get(key..key + 2) {
            Some(bounds) => &self.values[bounds[0]..bounds[1]],
            None => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_the_order_of_the_pairs() {
        let map = IdMultimap::from_pairs(&[(2, 7), (0, 5), (2, 6), (2, 7)], 4);
        assert_eq!([0, 1, 2, 3, 4].map(|key| map.get(key).to_vec()), [vec![5], vec![], vec![7, 6, 7], vec![], vec![]]);
        assert!(IdMultimap::default().get(0).is_empty());
    }
}
