-- depends: 0005_uploads
-- Documents of a brand (guidelines, voice and tone). A row is one version; nobody changes one, a newer one is added.
set role onbrand_owner;

create table app.documents (
  id uuid not null default gen_random_uuid(),
  brand_id text not null references app.brands,
  user_id uuid not null,
  name text not null check (name ~ '^[a-z0-9][a-z0-9-]{0,59}$' and name <> 'incoming'),
  version integer not null check (version > 0),
  title text not null check (char_length(title) between 1 and 200),
  object_name text not null collate "C" check (split_part(object_name, '/', 1) = brand_id),
  content_type text not null check (content_type in ('application/pdf', 'text/markdown; charset=utf-8')),
  bytes bigint not null check (bytes > 0),
  num_pages integer check (num_pages > 0),
  sha256 text not null check (sha256 ~ '^[0-9a-f]{64}$'),
  created_at timestamptz not null default clock_timestamp(),
  primary key (brand_id, id),
  unique (brand_id, name, version),
  unique (brand_id, object_name),
  check ((num_pages is null) = (content_type <> 'application/pdf'))
);
create index documents_by_time on app.documents (brand_id, created_at, id);
alter table app.upload_objects add foreign key (brand_id, document_id)
  references app.documents (brand_id, id) on delete cascade;

call app.build_wall('app.documents');
call app.need_scope('app.documents', 'insert', 'upload');
call app.need_scope('app.documents', 'delete', 'manage');

grant select, delete on app.documents to authenticated;
grant insert (brand_id, user_id, name, version, title, object_name, content_type, bytes, num_pages, sha256)
  on app.documents to authenticated;

create policy member_select on app.documents for select to authenticated using (true);
create policy member_insert on app.documents for insert to authenticated
  with check (user_id = (select private.uid()));
create policy admin_delete on app.documents for delete to authenticated
  using ((select private.is_admin()));

create policy document_of_ones_own on app.upload_objects as restrictive for insert to authenticated with check (
  document_id is null or exists (select 1 from app.documents d where d.brand_id = upload_objects.brand_id
    and d.id = upload_objects.document_id and d.user_id = (select private.uid())));

reset role;
