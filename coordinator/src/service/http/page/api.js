// What the coordinator is asked.

const KEY = "dico-admin-token";
const RETRY = 2000;

async function answer(response) {
  const body = await response.json().catch(() => ({}));
  if (!response.ok) {
    const error = new Error(body.error ?? `the coordinator answered ${response.status}`);
    error.status = response.status;
    throw error;
  }
  return body;
}

/** What is at a path below `api/`. */
export const get = async (path) => answer(await fetch(`api/${path}`));

/** The admin token, for as long as this tab is open. */
export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** Sends a command. */
export async function command(name, body) {
  const headers = { authorization: `Bearer ${token.get() ?? ""}` };
  if (body) headers["content-type"] = "application/json";
  return answer(await fetch(`api/${name}`, { method: "POST", headers, body: body && JSON.stringify(body) }));
}

/** Tells of every look at the run, and of every time that the way to the coordinator is lost. */
export function follow(tell, lost) {
  const source = new EventSource("api/stream");
  source.onmessage = (event) => tell(JSON.parse(event.data));
  source.onerror = () => {
    lost();
    // The browser tries again by itself, unless it was turned away.
    if (source.readyState === EventSource.CLOSED) setTimeout(() => follow(tell, lost), RETRY);
  };
}
