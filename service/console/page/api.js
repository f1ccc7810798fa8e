// Speaks to the admin API. The page lies at <prefix>/console/, the API at <prefix>/admin/.
const root = new URL("../admin/", document.baseURI);

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status; // 0: no answer at all
  }
}

export const address = (path) => new URL(path, root).href;
export const segment = encodeURIComponent;

export async function call(method, path, body) {
  const headers = { accept: "application/json" };
  if (method !== "GET") headers["x-mipgate-console"] = "1";
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(address(path), {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "same-origin",
      cache: "no-store",
    });
  } catch {
    throw new ApiError("The gateway does not answer. Check that it runs, and the network.", 0);
  }
  const document = await response.json().catch(() => null);
  if (!response.ok) {
    throw new ApiError(document?.error ?? `The gateway answered ${response.status}. Its log says more.`, response.status);
  }
  return document;
}

export const get = (path) => call("GET", path);
export const post = (path, body) => call("POST", path, body);
export const remove = (path) => call("DELETE", path);
