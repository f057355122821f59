//! Implements `wasi:keyvalue@0.2.0-draft`: cursors and sums are unsigned numbers, and there is no compare-and-swap.

use wasmtime::component::{HasSelf, Linker, Resource};

use self::bindings::wasi::keyvalue::store::{Error, KeyResponse};
use self::bindings::wasi::keyvalue::{atomics, batch, store};
use super::{Bucket, Failure, GuestState, Many, Name, Value, whole_keys, whole_pairs, whole_value};
use wasmcage_store::StoreError;

mod bindings {
    wasmtime::component::bindgen!({
        path: "wit/wasi/keyvalue-draft",
        world: "wasi:keyvalue/imports",
        imports: { default: async | trappable },
        with: { "wasi:keyvalue/store.bucket": super::super::Bucket },
        trappable_error_type: { "wasi:keyvalue/store.error" => super::super::Failure },
    });
}

pub(super) fn add_to_linker(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    bindings::Imports::add_to_linker::<_, HasSelf<_>>(linker, |state| state)?;
    linker.allow_shadowing(true);
    bound(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

fn bound(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    bounded_shared!(linker, "0.2.0-draft", u64);
    Ok(())
}

impl store::Host for GuestState {
    async fn open(&mut self, identifier: String) -> Result<Resource<Bucket>, Failure> {
        self.open_bucket(&identifier)
    }

    fn convert_error(&mut self, failure: Failure) -> wasmtime::Result<Error> {
        match failure {
            Failure::NoSuchBucket => Ok(Error::NoSuchStore),
            Failure::Store(error) => Ok(Error::Other(error.to_string())),
            Failure::Trap(error) => Err(error),
        }
    }
}

impl store::HostBucket for GuestState {
    async fn get(&mut self, bucket: Resource<Bucket>, key: String) -> Result<Option<Vec<u8>>, Failure> {
        Ok(self.keys(&bucket).await?.get(&key).await?)
    }

    async fn set(&mut self, bucket: Resource<Bucket>, key: String, value: Vec<u8>) -> Result<(), Failure> {
        Ok(self.keys(&bucket).await?.set(&key, value).await?)
    }

    async fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> Result<(), Failure> {
        Ok(self.keys(&bucket).await?.delete(&key).await?)
    }

    async fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> Result<bool, Failure> {
        Ok(self.keys(&bucket).await?.get(&key).await?.is_some())
    }

    async fn list_keys(&mut self, bucket: Resource<Bucket>, cursor: Option<u64>) -> Result<KeyResponse, Failure> {
        let cursors = &self.table.get(&bucket)?.cursors;
        let cursor = cursor.map(|number| cursors.get(number)).transpose()?;
        let (keys, next) = self.keys(&bucket).await?.list(cursor).await?;
        let cursors = &mut self.table.get_mut(&bucket)?.cursors;
        Ok(KeyResponse { keys, cursor: next.map(|next| cursors.add(next)) })
    }

    async fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

impl atomics::Host for GuestState {
    async fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: u64) -> Result<u64, Failure> {
        let keys = self.keys(&bucket).await?;
        let by = i64::try_from(delta).map_err(|_| StoreError::Invalid(format!("{delta} is more than {}", i64::MAX)))?;
        let sum = keys.increment(&key, by).await?;
        Ok(u64::try_from(sum).map_err(|_| StoreError::Invalid(format!("the sum is negative: {sum}")))?)
    }
}

impl batch::Host for GuestState {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Result<Vec<Option<(String, Vec<u8>)>>, Failure> {
        let found = self.keys(&bucket).await?.get_many(keys).await?.into_iter();
        Ok(found.map(|(key, value)| Some((key, value?))).collect())
    }

    async fn set_many(&mut self, bucket: Resource<Bucket>, pairs: Vec<(String, Vec<u8>)>) -> Result<(), Failure> {
        Ok(self.keys(&bucket).await?.set_many(pairs).await?)
    }

    async fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Result<(), Failure> {
        Ok(self.keys(&bucket).await?.delete_many(keys).await?)
    }
}
