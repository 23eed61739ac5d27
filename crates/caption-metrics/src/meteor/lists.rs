//! Lists of numbers by number.

/// For each number from 0, the numbers listed for it.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// Where the list of each number starts in `values`, and the last ends.
    starts: Vec<usize>,
    values: Vec<u32>,
}

impl Lists {
    /// Of `pairs` of the number that lists and the one listed: the lists of the numbers below `count`, which those that
    /// list must be. Each list keeps the order of the pairs.
    pub fn of_pairs(pairs: &[(u32, u32)], count: usize) -> Self {
        let mut starts = vec![0; count + 1];
        for &(key, _) in pairs {
            starts[key as usize + 1] += 1;
        }
        for key in 0..count {
            starts[key + 1] += starts[key];
        }
        let mut ends = starts.clone();
        let mut values = vec![0; pairs.len()];
        for &(key, value) in pairs {
            let end = &mut ends[key as usize];
            values[*end] = value;
            *end += 1;
        }
        Self { starts, values }
    }

    pub fn of(&self, key: u32) -> &[u32] {
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
    fn lists_keep_the_order_of_the_pairs() {
        let lists = Lists::of_pairs(&[(2, 7), (0, 5), (2, 6), (2, 7)], 4);
        assert_eq!([0, 1, 2, 3, 4].map(|key| lists.of(key).to_vec()), [vec![5], vec![], vec![7, 6, 7], vec![], vec![]]);
        assert!(Lists::default().of(0).is_empty());
    }
}
