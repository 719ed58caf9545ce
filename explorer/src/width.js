// The width of an element, which follows the window.
import { useEffect, useRef, useState } from "preact/hooks";

export function useWidth() {
  const element = useRef();
  const [width, setWidth] = useState(800);
  useEffect(() => {
    const observer = new ResizeObserver(([entry]) => setWidth(entry.contentRect.width));
    observer.observe(element.current);
    return () => observer.disconnect();
  }, []);
  return [element, width];
}
