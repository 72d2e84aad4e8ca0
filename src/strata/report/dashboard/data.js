"use strict";
// The data come in script files, since a page from disk may not fetch. Each calls Strata.put with its name and content.
const Strata = (() => {
  const MOST_KEPT = 96;
  const asked = new Map();
  const waiting = new Map();

  function load(name) {
    const known = asked.get(name);
    if (known) return known;
    const promise = new Promise((resolve, reject) => {
      const fail = (why) => {
        asked.delete(name);
        waiting.delete(name);
        reject(new Error(`data/${name}.js ${why}`));
      };
      const script = document.createElement("script");
      script.src = `data/${name}.js`;
      script.onload = () => {
        script.remove();
        if (waiting.has(name)) fail("holds something else");
      };
      script.onerror = () => {
        script.remove();
        fail("cannot be read");
      };
      waiting.set(name, resolve);
      document.head.append(script);
    });
    asked.set(name, promise);
    const chunks = [...asked.keys()].filter((other) => /\/\d+$/.test(other));
    if (chunks.length > MOST_KEPT) asked.delete(chunks[0]); // what was looked at longest ago
    return promise;
  }

  function put(name, content) {
    waiting.get(name)?.(content);
    waiting.delete(name);
  }

  // Whole numbers of `size` bytes each, little-endian, as base64.
  function integers(text, size) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const found = new Array(bytes.length / size);
    for (let i = 0; i < found.length; i++) {
      let value = 0;
      for (let b = size - 1; b >= 0; b--) value = value * 256 + bytes[i * size + b];
      found[i] = value;
    }
    return found;
  }

  return { load, put, integers };
})();
