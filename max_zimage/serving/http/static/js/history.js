// Pictures that were drawn, kept in this browser: files with what they were asked for by.

const NAME = "max-zimage";
const STORE = "pictures";
export const MOST = 200;

let opened = null;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.addEventListener("upgradeneeded", () => request.result.createObjectStore(STORE, { keyPath: "id" }));
    request.addEventListener("success", () => resolve(request.result));
    request.addEventListener("error", () => reject(request.error));
  });
  return opened;
}

async function transaction(mode, work) {
  const store = (await database()).transaction(STORE, mode).objectStore(STORE);
  const request = work(store);
  return new Promise((resolve, reject) => {
    store.transaction.addEventListener("complete", () => resolve(request?.result));
    store.transaction.addEventListener("error", () => reject(store.transaction.error));
    store.transaction.addEventListener("abort", () => reject(store.transaction.error));
  });
}

/** All pictures, the newest first. */
export async function all() {
  const found = await transaction("readonly", (store) => store.getAll());
  return found.sort((one, other) => other.created - one.created || other.index - one.index);
}

/** Keep a picture; the oldest beyond `MOST` go. Answers the ids of those that went. */
export async function keep(picture) {
  await transaction("readwrite", (store) => store.put(picture));
  const gone = (await all()).slice(MOST).map((each) => each.id);
  for (const id of gone) await forget(id);
  return gone;
}

export async function forget(id) {
  await transaction("readwrite", (store) => store.delete(id));
}

export async function clear() {
  await transaction("readwrite", (store) => store.clear());
}
