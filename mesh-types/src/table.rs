//! A map for thousands of large values, and queues that are long for a moment.

use std::collections::btree_map;
use std::collections::{BTreeMap, VecDeque};

/// Room that a queue keeps while it is empty.
const KEPT: usize = 64;

/// Takes the first of a queue. An empty one gives back the room that it took when thousands waited.
pub fn take_first<T>(queue: &mut VecDeque<T>) -> Option<T> {
    let first = queue.pop_front();
    if queue.is_empty() {
        queue.shrink_to(KEPT);
    }
    first
}

/// A sorted map whose values stand outside of the tree. The nodes of a B-tree that grew in order are half empty, so values
/// inside of them would take almost twice their room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table<K, V>(BTreeMap<K, Box<V>>);

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord, V> Table<K, V> {
    /// What stands there.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: std::borrow::Borrow<Q>,
    {
        self.0.get(key).map(|value| &**value)
    }

    /// What stands there, to change.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: std::borrow::Borrow<Q>,
    {
        self.0.get_mut(key).map(|value| &mut **value)
    }

    /// The same, made where there is nothing.
    pub fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        self.0.entry(key).or_insert_with(|| Box::new(make()))
    }

    /// The key and what stands there.
    pub fn get_key_value<Q: Ord + ?Sized>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: std::borrow::Borrow<Q>,
    {
        let (key, value) = self.0.get_key_value(key)?;
        Some((key, &**value))
    }

    /// Does anything stand there?
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: std::borrow::Borrow<Q>,
    {
        self.0.contains_key(key)
    }

    /// Puts a value there; gives back what stood there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.0.insert(key, Box::new(value)).map(|old| *old)
    }

    /// Takes away what stands there.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: std::borrow::Borrow<Q>,
    {
        self.0.remove(key).map(|value| *value)
    }

    /// Keeps only what is to be kept.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &mut V) -> bool) {
        self.0.retain(|key, value| keep(key, value));
    }

    /// Takes everything away.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl<K, V> Table<K, V> {
    /// How many values there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All, by key.
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter(self.0.iter())
    }

    /// All, by key, to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.0.iter_mut().map(|(key, value)| (key, &mut **value))
    }

    /// All keys.
    pub fn keys(&self) -> btree_map::Keys<'_, K, Box<V>> {
        self.0.keys()
    }

    /// All values, by key.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.0.values().map(|value| &**value)
    }

    /// All values, by key, to change.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.0.values_mut().map(|value| &mut **value)
    }
}

/// All of a [`Table`], by key.
#[derive(Debug)]
pub struct Iter<'a, K, V>(btree_map::Iter<'a, K, Box<V>>);

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, value) = self.0.next()?;
        Some((key, &**value))
    }
}

impl<'a, K, V> IntoIterator for &'a Table<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_queue_gives_its_room_back() {
        let mut queue: VecDeque<u32> = (0..10_000).collect();
        while take_first(&mut queue).is_some() {}
        assert!(queue.capacity() < 1_000);
    }

    #[test]
    fn a_table_holds_what_was_put_in_by_key() {
        let mut table = Table::default();
        assert_eq!(table.insert(2, "two"), None);
        assert_eq!(table.insert(2, "zwei"), Some("two"));
        *table.get_or_insert_with(1, || "one") = "eins";
        assert_eq!(
            table.iter().collect::<Vec<_>>(),
            [(&1, &"eins"), (&2, &"zwei")]
        );
        table.retain(|key, _| *key == 2);
        assert_eq!((table.len(), table.get(&1)), (1, None));
        assert_eq!(table.remove(&2), Some("zwei"));
        assert!(table.is_empty());
    }
}
