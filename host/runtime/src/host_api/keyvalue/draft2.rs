//! Implements `wasi:keyvalue@0.2.0-draft2`: cursors are texts, sums may be negative, and there is compare-and-swap.

use wasmtime::component::{HasSelf, Linker, Resource};

use self::bindings::wasi::keyvalue::atomics::CasError;
use self::bindings::wasi::keyvalue::store::{Error, KeyResponse};
use self::bindings::wasi::keyvalue::{atomics, batch, store};
use super::{
    Bucket, Cas, Failure, Found, GuestState, Keys, Many, Name, Swap, TooLong, Value, whole_keys, whole_pairs,
    whole_value,
};

mod bindings {
    wasmtime::component::bindgen!({
        path: "wit/wasi/keyvalue-draft2",
        world: "wasi:keyvalue/imports",
        imports: { default: async | trappable },
        with: {
            "wasi:keyvalue/store.bucket": super::super::Bucket,
            "wasi:keyvalue/atomics.cas": super::super::Cas,
        },
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
    bounded_shared!(linker, "0.2.0-draft2", i64);
    let mut functions = linker.instance("wasi:keyvalue/store@0.2.0-draft2")?;
    bounded!(functions, "[method]bucket.list-keys", |guest, bucket: Resource<Bucket>, cursor: Option<Name>| {
        store::HostBucket::list_keys(guest, bucket, cursor.map(Name::into_name)).await
    });
    let mut functions = linker.instance("wasi:keyvalue/atomics@0.2.0-draft2")?;
    bounded!(functions, "[static]cas.new", |guest, bucket: Resource<Bucket>, key: Name| {
        atomics::HostCas::new(guest, bucket, key.into_name()).await
    });
    functions.func_wrap_async(
        "swap",
        |mut store: wasmtime::StoreContextMut<'_, GuestState>, (cas, value): (Resource<Cas>, Value)| {
            Box::new(async move {
                let swapped = match whole_value(value) {
                    Ok(value) => atomics::Host::swap(store.data_mut(), cas, value).await?,
                    Err(TooLong(text)) => {
                        store.data_mut().table.delete(cas)?;
                        Err(CasError::StoreError(Error::Other(text)))
                    }
                };
                Ok((swapped,))
            })
        },
    )?;
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

    async fn list_keys(&mut self, bucket: Resource<Bucket>, cursor: Option<String>) -> Result<KeyResponse, Failure> {
        let (keys, cursor) = self.keys(&bucket).await?.list(cursor).await?;
        Ok(KeyResponse { keys, cursor })
    }

    async fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

impl atomics::Host for GuestState {
    async fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: i64) -> Result<i64, Failure> {
        Ok(self.keys(&bucket).await?.increment(&key, delta).await?)
    }

    async fn swap(&mut self, cas: Resource<Cas>, value: Vec<u8>) -> wasmtime::Result<Result<(), CasError>> {
        let Cas { prefix, key, seen } = self.table.delete(cas)?;
        let swapped = match self.store().await {
            Ok(store) => Keys { store, prefix: prefix.clone() }.swap(&key, seen, value).await,
            Err(error) => Err(error),
        };
        Ok(match swapped {
            Ok(Swap::Done) => Ok(()),
            Ok(Swap::Changed(seen)) => Err(CasError::CasFailed(self.table.push(Cas { prefix, key, seen })?)),
            Err(error) => Err(CasError::StoreError(Error::Other(error.to_string()))),
        })
    }
}

impl atomics::HostCas for GuestState {
    async fn new(&mut self, bucket: Resource<Bucket>, key: String) -> Result<Resource<Cas>, Failure> {
        let keys = self.keys(&bucket).await?;
        let seen = keys.observe(&key).await?;
        Ok(self.table.push(Cas { prefix: keys.prefix, key, seen })?)
    }

    /// Reads the present value, and records it as the one that a swap replaces.
    async fn current(&mut self, cas: Resource<Cas>) -> Result<Option<Vec<u8>>, Failure> {
        let store = self.store().await?;
        let Cas { prefix, key, .. } = self.table.get(&cas)?;
        let (keys, key) = (Keys { store, prefix: prefix.clone() }, key.clone());
        let value = keys.get(&key).await?;
        let cas = self.table.get_mut(&cas)?;
        cas.seen = value.as_deref().map(super::digest);
        Ok(value)
    }

    async fn drop(&mut self, cas: Resource<Cas>) -> wasmtime::Result<()> {
        self.table.delete(cas)?;
        Ok(())
    }
}

impl batch::Host for GuestState {
    async fn get_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Result<Vec<Found>, Failure> {
        Ok(self.keys(&bucket).await?.get_many(keys).await?)
    }

    async fn set_many(&mut self, bucket: Resource<Bucket>, pairs: Vec<(String, Vec<u8>)>) -> Result<(), Failure> {
        Ok(self.keys(&bucket).await?.set_many(pairs).await?)
    }

    async fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Result<(), Failure> {
        Ok(self.keys(&bucket).await?.delete_many(keys).await?)
    }
}
