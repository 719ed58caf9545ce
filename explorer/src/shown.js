// An element that comes into view when its key changes, because what was clicked may stand far from it.
import { useEffect, useRef } from "preact/hooks";

export function useShown(key) {
  const element = useRef();
  useEffect(() => element.current.scrollIntoView({ block: "nearest" }), [key]);
  return element;
}
